"""A service mesh without proxies for Python."""
