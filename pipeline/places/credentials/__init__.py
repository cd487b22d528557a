"""Credentials: found in URLs so that they are refused, and kept out of whatever is shown or written.

names.py    which names of parameters, headers and fields are those of secrets
urls.py     users, passwords, and queries that sign
text.py     what libraries say: headers, options, JSON, reprs, keys
"""

from pipeline.places.credentials.text import redacted, shown
from pipeline.places.credentials.urls import carried

__all__ = ["carried", "redacted", "shown"]
