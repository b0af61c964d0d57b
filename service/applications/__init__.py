"""What people do with vectors of many languages: mine translations, find duplicates, see topics, search."""
