"""How fast knowledge texts are written, and what they are worth."""
