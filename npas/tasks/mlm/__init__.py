"""Pre-train on plain text: masked tokens and sentence order."""
