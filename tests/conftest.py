"""Its place puts tests/ on the import path, so that every test can import tiny_model."""
