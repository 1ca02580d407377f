"""The operations as functions: check the arguments, choose the backend; the portable one is here."""
