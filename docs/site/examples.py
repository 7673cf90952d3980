"""Docstrings say "Example:", as napoleon takes it; griffe knows the plural alone."""

import griffe


class Examples(griffe.Extension):
    """Makes sections of examples of them."""

    def on_object(self, *, obj, **_):
        """Renames the section of one object."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
