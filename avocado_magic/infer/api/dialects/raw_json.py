"""What msgspec raises for JSON that it cannot read."""

from __future__ import annotations

import msgspec

# For bytes that it does not read as JSON.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
