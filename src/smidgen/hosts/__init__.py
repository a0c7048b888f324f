"""Hosts: tables that say where the sites of a base are, the only place for module names."""

from smidgen.hosts.host import HOSTS, Block, Family, Host, Position, find_family, find_host

__all__ = ["HOSTS", "Block", "Family", "Host", "Position", "find_family", "find_host"]
