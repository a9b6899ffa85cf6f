"""Where inputs come from: one module a kind of address, all behind the interface."""
