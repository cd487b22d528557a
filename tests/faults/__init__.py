"""Damage, kills and failing storage, in campaigns: make test-faults."""
