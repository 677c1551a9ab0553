"""Reports: what run folders and comparisons say, as one HTML page that works offline, and as figures for papers."""
