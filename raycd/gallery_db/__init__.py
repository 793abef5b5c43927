"""The gallery database (SQLite or PostgreSQL): every image that can be found, and the events.

gallery_database  `GalleryDatabase`: reading and changing it
tables, schema    its tables; making and migrating them (migrations/)
database, faults  engines and addresses; errors of the database in words
statements, bulk, batches, listing   SQL, and what writes and reads many rows
events            what people searched and did
pictures, stored  files of pictures; a database together with them, for jobs
sources, owner, leases, watch   imports of files, who writes, and whether the file is still there
backup, check     for people who run it
"""

from raycd.gallery_db.gallery_database import GalleryDatabase

__all__ = ["GalleryDatabase"]
