"""One file per source of labeled crystals; each declares the conventions of its labels."""
