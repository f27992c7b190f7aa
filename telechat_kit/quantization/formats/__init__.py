"""W8A8 on disk: int8 weights packed, the kit's folder, and the formats of other tools."""
