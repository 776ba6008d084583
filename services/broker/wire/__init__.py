"""Proto to model and back, both ways and total: hostile input becomes a typed error, never a defect."""
