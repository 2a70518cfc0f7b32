"""The node's pages: worklist, status, one slide; rendered here, without scripts, for this computer only."""
