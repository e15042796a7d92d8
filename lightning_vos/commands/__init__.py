"""Lightning command verbs, one file each."""
