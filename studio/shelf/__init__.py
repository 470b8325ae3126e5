"""What changes the adapters on disk: import, edit, rename, export, delete with undo."""
