"""Generated from proto/muster; never edited."""
