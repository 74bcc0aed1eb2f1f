"""One page on what runs came to: folders read, scores compared and bounded, pictures, HTML."""
