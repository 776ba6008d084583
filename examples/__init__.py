"""Programs that use Muster as a user would; each runs in the tests."""
