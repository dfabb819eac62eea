"""Reading files that anybody may have made, and writing files whole or not at all."""
