"""What the fast reader of JSON raises."""

from __future__ import annotations

import msgspec

# For bytes that it does not read as JSON.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
