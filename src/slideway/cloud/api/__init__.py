"""The cloud's HTTP routes, by who may call them."""
