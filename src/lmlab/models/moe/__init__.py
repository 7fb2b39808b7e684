"""Mixtures of experts: the layer, its back ends, routers and their losses."""
