"""One file per source of labelled crystals; each declares the conventions of its labels."""
