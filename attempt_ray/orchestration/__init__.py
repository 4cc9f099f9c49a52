"""Where runs are placed: the only room of the library that imports Ray."""
