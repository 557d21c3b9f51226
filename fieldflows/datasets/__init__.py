"""From foreign labeled files to one cleaned dataset in internal units."""
