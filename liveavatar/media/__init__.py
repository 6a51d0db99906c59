"""Pictures and sounds of the user, read and checked; videos, written and probed."""
