"""Programs of an attacker: root inside a container, against the host.

The tests run these functions on a host, where only the standard library is at hand. All
imports stand at the top of a module, because a program that has entered the container can no longer
reach the files of Python.
"""
