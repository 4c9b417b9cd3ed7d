"""What several tasks need: sampling, workers, downloads, archives, tokenizers, word vectors."""
