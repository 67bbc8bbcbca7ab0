"""Accounts: sign up, log in, log out."""

from .views import accounts

__all__ = ["accounts"]
