"""A workshop for tests that build."""

from tests.workshop import _workshop_of_the_session, shop

__all__ = ["_workshop_of_the_session", "shop"]
