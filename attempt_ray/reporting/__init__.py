"""Tables and figures read back from run directories; no torch, no ray."""
