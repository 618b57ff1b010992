# Fills the current directory, of an ext4, with all that system calls can be tried on.
umask 022

head -c 100003 /dev/urandom >dense
ln dense hard
: >empty
truncate -s 131072 hole
truncate -s 200003 sparse
head -c 65536 /dev/urandom | dd of=sparse bs=65536 seek=1 conv=notrunc status=none
head -c 4096 /dev/urandom >tail
truncate -s 77777 tail
printf old >"$(printf n%.0s $(seq 255))"

ln -s dense to-dense
ln -s dir to-dir
ln -s missing dangling
ln -s loop loop
ln -s /etc/passwd absolute
ln -s ../outside upward
ln -s "$(printf target/%.0s $(seq 100))" far

mkfifo fifo
mknod null c 1 3
chmod 666 null
mknod loop0 b 7 0

mkdir dir many no-directories
echo inner >dir/inner
mkdir dir/sub
(cd many && touch $(seq -f 'a-rather-long-name-%03g' 300))
touch no-directories/one no-directories/two
mkdir -m 700 locked
echo x >locked/file
mkdir -m 711 passable
echo x >passable/known
mkdir -m 1777 sticky
mkdir -m 2775 setgid

mkdir bin
cp /bin/true bin/true
cp /usr/bin/id bin/owner
chown 1000:1000 bin/owner
chmod 6755 bin/owner
printf '#!/bin/sh\necho script\n' >bin/script
printf '#!/missing\n' >bin/lost
printf 'no program' >bin/text
chmod 755 bin/script bin/lost bin/text
printf '#!/bin/sh\n' >bin/plain
ln -s true bin/to-true

echo x >private
chmod 600 private
echo x >nobody
chmod 000 nobody
echo x >group
chown 0:65534 group
chmod 040 group
echo x >owned
chown 65534:0 owned
chmod 400 owned

echo x >noted
for file in noted private dir; do
    setfattr -n user.note -v note "$file"
    setfattr -n trusted.secret -v secret "$file"
done
setfattr -n user.big -v "$(printf b%.0s $(seq 2000))" noted
# A mask that takes away from the group what the mode seems to give it, and a user who may read all the same.
echo x >guarded
chown 0:65534 guarded
setfacl -m u::rw,g::-,u:1000:rw,o::-,m::rw guarded
echo x >allowed
chmod 600 allowed
setfacl -m u:65534:r allowed
mkdir defaults
setfacl -d -m u:1000:rwx,g::rx,o::- defaults
setfacl -m u:65534:- defaults
cp /bin/true capable
setcap cap_net_raw+ep capable

find . -mindepth 1 -exec touch -h -d @1600000000.123456789 {} +
touch -d @-100 empty
touch -d @1 dense
touch -d @5000000000 group
touch -d @1600000001.5 .

