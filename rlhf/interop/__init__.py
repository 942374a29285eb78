"""Published models: their files <-> our networks."""
