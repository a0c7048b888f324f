"""Hosts: one file a family of networks, the only place for their module names."""

from smidgen.hosts.family import Family
from smidgen.hosts.host import HOSTS, Block, Host, Position, find_family, find_host

__all__ = ["HOSTS", "Block", "Family", "Host", "Position", "find_family", "find_host"]
