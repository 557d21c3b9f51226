"""MACE-Field: a MACE backbone whose node features couple to a macroscopic electric field."""
