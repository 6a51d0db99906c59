"""Live talk: sound goes in while it is spoken, pictures come out."""
