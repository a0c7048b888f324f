"""Hosts: tables that say where the sites of a base are, the only place for module names."""

from smidgen.hosts.host import HOSTS, Host, find_host

__all__ = ["HOSTS", "Host", "find_host"]
