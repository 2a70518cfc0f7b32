"""How older stores become new ones, one step in each file of `versions`; run by `slideway.store.migrate`."""
