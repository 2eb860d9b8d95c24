"""Launchers: from one machine to a pod, each a script that can be read before it runs (docs/launching.md)."""
