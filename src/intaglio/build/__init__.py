"""From a locked recipe to a signed image: plan, actions, sandbox, claims, assembly."""
