"""Other people's methods, behind the same kind of converter: what this library is measured against."""
