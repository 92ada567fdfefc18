#!/bin/sh
# Makes the certificates of the tests beside it: two authorities, a server's certificate of each, a client's of the
# first. For loopback only; they secure nothing.
set -eu
cd "$(dirname "$0")"
days=36500
authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days $days -subj "/CN=test authority $1" \
        -addext "basicConstraints=critical,CA:true" -addext "keyUsage=critical,keyCertSign" \
        -keyout "authority-$1.key" -out "authority-$1.pem"
}
certificate() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$1.key" -out "$1.csr"
    printf 'basicConstraints=CA:false\nsubjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA "authority-$2.pem" -CAkey "authority-$2.key" -CAcreateserial -days $days \
        -extfile "$1.ext" -out "$1.pem"
    rm "$1.csr" "$1.ext"
}
authority first
authority second
certificate server-first first
certificate server-second second
certificate client first
rm -f ./*.srl authority-first.key authority-second.key
