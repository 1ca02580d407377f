"""Programs in which hypernetworks are used, as doubles with their interfaces."""
