"""The miniature: a small model of the same architecture that comes along, and the drawn world it was trained in."""
