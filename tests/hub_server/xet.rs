//! The Xet half of the stand-in: Hugging Face's own store in this process, a door before it that can break connections,
//! and which of its files has which sha256.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use xet_client::cas_client::{DirectAccessClient, LocalTestServer, LocalTestServerBuilder};
use xet_client::cas_types::{FileRange, HexMerkleHash};

use super::Shared;
use super::fault::{Fault, Faults};
use super::store::{Large, sha256};

pub struct Xet {
    /// Kept for as long as it has to run.
    server: LocalTestServer,
    door: String,
    /// Files of the store whose sha256 is known.
    seen: Mutex<HashSet<HexMerkleHash>>,
}

impl Xet {
    pub async fn start(disk: Option<std::path::PathBuf>, faults: Arc<Faults>) -> Self {
        let builder = LocalTestServerBuilder::new();
        let server = match disk {
            Some(folder) => builder.with_disk_location(folder).start().await,
            None => builder.start().await,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = format!("http://{}", listener.local_addr().unwrap());
        let store = server.http_endpoint().replace("http://", "");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(pass(stream, store.clone(), faults.clone()));
            }
        });
        Self {
            server,
            door,
            seen: Mutex::default(),
        }
    }

    /// The address that clients are given.
    pub fn url(&self, faults: &Faults) -> String {
        let is_watched = faults.has(|f| matches!(f, Fault::CutXet { .. } | Fault::SlowXet { .. }));
        if is_watched {
            self.door.clone()
        } else {
            self.server.http_endpoint().to_string()
        }
    }

    pub fn client(&self) -> Arc<dyn DirectAccessClient> {
        self.server.client().clone()
    }

    pub async fn read(&self, hash: HexMerkleHash, start: u64, end: u64) -> Option<Bytes> {
        let range = Some(FileRange::new(start, end));
        (self.client().get_file_data(&hash.0, range).await).ok()
    }

    /// Makes every file that has come into the store since the last time known by its sha256.
    pub async fn register(&self, shared: &Shared) {
        let url = format!("{}/simulation/file_entries", self.server.http_endpoint());
        let answer = reqwest::get(url).await.unwrap().bytes().await.unwrap();
        let entries: Vec<serde_json::Value> = serde_json::from_slice(&answer).unwrap_or_default();
        for entry in entries {
            let words = entry["file_hash"].as_array().cloned().unwrap_or_default();
            let hex: String = words
                .iter()
                .filter_map(|word| word.as_u64())
                .map(|word| format!("{word:016x}"))
                .collect();
            let hash: HexMerkleHash = serde_json::from_value(hex.into()).unwrap();
            if !self.seen.lock().unwrap().insert(hash) {
                continue;
            }
            let Ok(content) = self.client().get_file_data(&hash.0, None).await else {
                continue;
            };
            let mut store = shared.store.lock().unwrap();
            let large = (store.large.entry(sha256(&content))).or_insert(Large {
                size: content.len() as u64,
                lfs: None,
                xet: None,
            });
            large.xet = Some(hash);
        }
    }

    /// A file whose sha256 is known without reading it.
    pub fn know(&self, hash: HexMerkleHash) {
        self.seen.lock().unwrap().insert(hash);
    }
}

/// Passes bytes on in both directions, as slowly and as long as the faults say.
async fn pass(mut client: TcpStream, store: String, faults: Arc<Faults>) {
    let Ok(mut server) = TcpStream::connect(store).await else {
        return;
    };
    let (mut to_client, mut to_server) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut num_sent = 0;
    loop {
        let n = tokio::select! {
            n = server.read(&mut to_client) => {
                let Ok(n @ 1..) = n else { return };
                num_sent += n as u64;
                let cut = faults.take(|f| match f {
                    Fault::CutXet { after } if num_sent > *after => Some(()),
                    _ => None,
                });
                if cut.is_some() || client.write_all(&to_client[..n]).await.is_err() {
                    return;
                }
                n
            }
            n = client.read(&mut to_server) => {
                let Ok(n @ 1..) = n else { return };
                if server.write_all(&to_server[..n]).await.is_err() {
                    return;
                }
                n
            }
        };
        let rate = faults.take(|f| match f {
            Fault::SlowXet { bytes_per_s } => Some(*bytes_per_s),
            _ => None,
        });
        if let Some(rate) = rate {
            tokio::time::sleep(Duration::from_secs_f64(n as f64 / rate as f64)).await;
        }
    }
}
