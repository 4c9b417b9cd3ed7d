"""Code that several tasks use: workers, downloads, checksums, tokenizers, word vectors."""
