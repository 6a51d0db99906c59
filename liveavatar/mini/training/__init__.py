"""How the miniature was trained (see `liveavatar.mini.train`)."""
