"""Images and audio of the user, read and checked; videos, written and probed."""
