"""Small shared things, each named for what it does. Imports nothing from the rest of the project."""
