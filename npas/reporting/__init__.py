"""Result files, published figures, tables and plots."""
